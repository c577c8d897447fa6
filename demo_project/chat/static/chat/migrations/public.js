import { createCable } from "@anycable/web";
import { show, status } from "./page.js";

const cable = createCable({ protocol: "actioncable-v1-ext-json" });
const channel = cable.streamFrom("news:public");
channel.on("connect", () => status("public", "connected"));
channel.on("message", (message) => show("public", message));
