// How long, in milliseconds, to wait before the members are requested again.
const DELAY = 1000

// Show the members of a channel's presence stream: now, after each change, and after a reconnect.
export function watchPresence(channel, show) {
  const cable = channel.receiver
  if (!cable) throw new Error('watchPresence: the channel is not subscribed')
  let watched = true
  let timer

  const update = async () => {
    clearTimeout(timer)
    let members
    try {
      members = await channel.presence.info()
    } catch (error) {
      // The store failed. After all other errors, the channel connects again, or is closed.
      if (watched && error.message === 'failed to retrieve presence') timer = setTimeout(update, DELAY)
      return
    }
    if (watched && cable.state === 'connected' && members) {
      show(Object.entries(members).map(([id, info]) => ({ id, info })))
    }
  }
  const hide = () => watched && show(null)

  const unbind = [
    channel.on('connect', update),
    channel.on('presence', ({ type }) => (type === 'join' || type === 'leave') && update()),
    cable.on('disconnect', hide),
    cable.on('close', hide)
  ]
  const stop = () => {
    watched = false
    clearTimeout(timer)
    for (const each of unbind) each()
  }
  unbind.push(
    channel.on('close', () => {
      hide()
      stop()
    })
  )
  if (channel.state === 'connected') update()
  return stop
}
