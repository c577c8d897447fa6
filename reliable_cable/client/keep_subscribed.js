// How long, in milliseconds, to wait before a closed channel is created again.
const DELAY = 500

// If the connection drops while a `subscribe` is unanswered, the client closes the channel for good, without a reason.
// A channel whose `subscribe` got no answer is closed, too. Only a rejection is final.
export function keepSubscribed(cable, channelClass, params = {}, setUp = () => {}) {
  let channel
  let timer
  let kept = true

  const subscribe = () => {
    channel = cable.subscribeTo(channelClass, { ...params })
    channel.on('close', reason => {
      if (kept && reason?.name !== 'SubscriptionRejectedError') timer = setTimeout(subscribe, DELAY)
    })
    setUp(channel)
  }
  subscribe()

  return {
    get channel() {
      return channel
    },
    unsubscribe() {
      kept = false
      clearTimeout(timer)
      channel.disconnect()
    }
  }
}
