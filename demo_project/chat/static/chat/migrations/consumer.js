import { createConsumer } from "@anycable/web";
import { show, status } from "./page.js";

const consumer = createConsumer();
const params = { channel: "NewsChannel", topic: "consumer" };
consumer.subscriptions.create(params, {
  connected: () => status("consumer", "connected"),
  disconnected: () => status("consumer", "disconnected"),
  received: (message) => show("consumer", message),
});
