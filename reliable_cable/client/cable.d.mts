// The types of cable.mjs.
/// <reference path="./anycable.d.ts" />
import type { Cable, Channel } from '@anycable/web'

export { Channel, createCable, createConsumer, fetchTokenFromHTML } from '@anycable/web'

type AnyChannel = Channel<any, any, any, any, any>
type Params = { [name: string]: boolean | number | string }
type ChannelClass<C extends AnyChannel> = { new (...args: any[]): C }

/** Why a call has no result. After "disconnected" and "timeout", it is unknown whether the action ran. */
export type CallFailure = 'failed' | 'refused' | 'unknown_action' | 'not_subscribed' | 'disconnected' | 'timeout'

export class CallError extends Error {
  readonly name: 'CallError'
  readonly action: string
  readonly reason: CallFailure
}

/**
 * Call an action of a channel, and return what the action returned.
 *
 * @param options.timeout how long, in milliseconds, to wait for the answer; 10 seconds by default
 * @throws CallError if there is no result
 */
export function call<Result = unknown>(
  channel: AnyChannel,
  action: string,
  data?: object,
  options?: { timeout?: number }
): Promise<Result>

export interface KeptSubscription<C extends AnyChannel = Channel> {
  /** The current channel. */
  readonly channel: C
  unsubscribe(): void
}

/**
 * Subscribe to a channel, and subscribe again whenever the client closes it, unless the server rejected it.
 *
 * @param setUp adds the event handlers to each new channel
 */
export function keepSubscribed(
  cable: Cable,
  channel: string,
  params?: Params,
  setUp?: (channel: Channel) => void
): KeptSubscription
export function keepSubscribed<C extends AnyChannel>(
  cable: Cable,
  channel: ChannelClass<C>,
  params?: C['params'],
  setUp?: (channel: C) => void
): KeptSubscription<C>

export interface Member<Info = unknown> {
  id: string
  info: Info
}

/**
 * Call `show` with the members of the channel's presence stream: now, and after each change. While the connection is
 * lost, the members are unknown, and `show` is called with null.
 *
 * @returns a function that stops this
 */
export function watchPresence<Info = unknown>(
  channel: AnyChannel,
  show: (members: Member<Info>[] | null) => void
): () => void
