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

/** A part of an answer besides its text. Skip parts of unknown types. */
export type RunPart = {
  /** The length of the text before the part. */
  at: number
} & (
  | { type: 'reasoning'; text: string }
  | { type: 'tool-call'; id: string; name: string; input: unknown }
  | { type: 'tool-result'; id: string; output: unknown }
  | { type: 'source'; url: string; title: string }
  | { type: 'data'; name: string; data: unknown }
)

/** How an attempt has ended. "rejected": there is no such run, or the user may not read it. */
export type RunEndStatus = 'completed' | 'stopped' | 'failed' | 'rejected'

/** "disconnected": the connection is lost, so it is unknown whether the task is still writing. */
export type RunState = 'connecting' | 'queued' | 'running' | 'disconnected' | RunEndStatus

export interface RunEnd {
  status: RunEndStatus
  /** What to tell the user if the run has failed, or "". */
  error: string
  /** The numbers that the model has reported, such as tokens. */
  usage: { [name: string]: unknown }
  text: string
  parts: RunPart[]
}

export interface RunCallbacks {
  /**
   * @param text the whole text so far
   * @param added the end of the text that is new; null if the answer begins anew, so that its former parts are void
   */
  onText?: (text: string, added: string | null) => void
  /**
   * @param part the part that was added, or the reasoning that has grown
   * @param parts all parts so far; `part` is the last of them
   */
  onPart?: (part: RunPart, parts: RunPart[]) => void
  /** The state has changed; the first call follows soon after `followRun`. */
  onState?: (state: RunState) => void
  /** An attempt has ended. There is one call for each attempt. */
  onEnd?: (end: RunEnd) => void
}

export interface FollowedRun {
  readonly state: RunState
  readonly text: string
  readonly parts: RunPart[]
  /**
   * Ask the server to stop the run. What was written stays.
   *
   * @throws CallError if the server did not confirm this
   */
  stop(): Promise<void>
  /** Unsubscribe. No callback is called any more. */
  close(): void
}

/** Read a run: the answer so far, then what the task adds, also after reconnects and in later attempts. */
export function followRun(cable: Cable, id: string, callbacks?: RunCallbacks): FollowedRun
