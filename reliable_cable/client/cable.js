// The exports of the bundle: the public names of the unmodified @anycable/web client.
export { Channel, createCable, createConsumer, fetchTokenFromHTML } from '@anycable/web'
