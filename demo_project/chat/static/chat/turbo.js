// A room with Turbo: the unmodified packages @hotwired/turbo and @anycable/turbo-stream.
import { start, TurboChannel } from "@anycable/turbo-stream";
import { createCable } from "@anycable/web";
import * as Turbo from "@hotwired/turbo";
import { show } from "./html_room.js";

Turbo.session.drive = false; // Turbo sends the form. Links lead to pages that do not use it.

const cable = createCable({
  protocol: "actioncable-v1-ext-json",
  // Shorter delays than the client's default: about half a second at first, and about five seconds at most.
  reconnectStrategy: (attempts) => Math.min(500 * 2 ** attempts, 5000) * (0.5 + Math.random()),
  logLevel: "error",
});
cable.on("connect", () => show("connected"));
cable.on("disconnect", () => show("reconnecting"));

/** The number of elements that have subscribed. */
let elements = 0;

class RoomChannel extends TurboChannel {
  constructor(element, channelId, params) {
    // The client gives a subscription the position of a former one with the same params. But the page that Turbo Drive
    // shows may lack messages that the page before it has received. So each element has params of its own.
    super(element, channelId, { ...params, element: ++elements });
    // If the client has closed the channel by itself, the element subscribes again.
    this.on("close", (error) => {
      if (error?.name === "SubscriptionRejectedError") return;
      setTimeout(() => element.isConnected && element.replaceWith(element.cloneNode()), 500);
    });
    this.on("info", ({ type }) => type === "history_not_found" && location.reload());
  }
}

start(cable, { channelClass: RoomChannel });
document.addEventListener("turbo:submit-end", ({ target, detail }) => detail.success && target.reset());
