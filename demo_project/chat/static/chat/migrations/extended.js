import { createCable } from "@anycable/web";
import { show, status } from "./page.js";

const cable = createCable({ protocol: "actioncable-v1-ext-json" });
const channel = cable.subscribeTo("NewsChannel", { topic: "extended" });
channel.on("connect", () => status("extended", "connected"));
channel.on("disconnect", () => status("extended", "disconnected"));
channel.on("message", (message, meta) => {
  show("extended", message, `offset ${meta.offset}`);
});
