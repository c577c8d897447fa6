import { createCable } from "@anycable/web";
import { show, status } from "./page.js";

// <section id="signed" data-stream="{% signed_stream_name name %}">
const { stream } = document.querySelector("#signed").dataset;
const cable = createCable({ protocol: "actioncable-v1-ext-json" });
const channel = cable.streamFromSigned(stream);
channel.on("connect", () => status("signed", "connected"));
channel.on("message", (message) => show("signed", message));
