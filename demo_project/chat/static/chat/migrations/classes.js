import { Channel, createCable } from "@anycable/web";
import { show, status } from "./page.js";

class NewsChannel extends Channel {
  static identifier = "NewsChannel";
}

const cable = createCable();
const channel = cable.subscribe(new NewsChannel({ topic: "classes" }));
channel.on("connect", () => status("classes", "connected"));
channel.on("disconnect", () => status("classes", "disconnected"));
channel.on("message", (message) => show("classes", message));
