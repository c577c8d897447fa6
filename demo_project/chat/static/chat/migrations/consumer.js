import { createConsumer } from "@anycable/web";
import { show, status } from "./page.js";

const consumer = createConsumer();
consumer.subscriptions.create({ channel: "NewsChannel", topic: "consumer" }, {
  connected: () => status("consumer", "connected"),
  disconnected: () => status("consumer", "disconnected"),
  received: (message) => show("consumer", message),
});
