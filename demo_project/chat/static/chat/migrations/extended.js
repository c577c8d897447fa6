import { createCable } from "@anycable/web";
import { show, status } from "./page.js";

const cable = createCable({ protocol: "actioncable-v1-ext-json" });
const channel = cable.subscribeTo("NewsChannel", { topic: "extended" });
channel.on("connect", () => status("extended", "connected"));
// A channel that will be restored gets no such event.
cable.on("disconnect", () => status("extended", "disconnected"));
channel.on("message", (message, meta) => {
  show("extended", message, `offset ${meta.offset}`);
});
