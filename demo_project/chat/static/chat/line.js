// A simulated network line that the page can cut. The unmodified client uses the line's WebSocket class.

/** A socket that closes before it opens, because the line is cut. */
class DeadSocket {
  constructor() {
    queueMicrotask(() => this.onclose?.());
  }

  close() {}
}

export class Line {
  constructor() {
    this.isCut = false;
    this.sockets = new Set();
    const line = this;
    /** The class that the client uses in place of the browser's WebSocket. */
    this.WebSocket = class {
      constructor(url, protocols) {
        return line.isCut ? new DeadSocket() : line.open(url, protocols);
      }
    };
  }

  open(url, protocols) {
    const socket = new WebSocket(url, protocols);
    this.sockets.add(socket);
    socket.addEventListener("close", () => this.sockets.delete(socket));
    return socket;
  }

  /** Cut the line: messages in transit are lost, and no connection opens until `restore` is called. */
  cut() {
    this.isCut = true;
    for (const socket of this.sockets) {
      const lost = socket.onclose;
      socket.onmessage = socket.onclose = null;
      hangUp(socket);
      lost?.call(socket);
    }
    this.sockets.clear();
  }

  restore() {
    this.isCut = false;
  }
}

function hangUp(socket) {
  if (socket.readyState !== WebSocket.CONNECTING) {
    socket.close();
    return;
  }
  // Browsers log an error for a socket that is closed before it has opened.
  const close = () => WebSocket.prototype.close.call(socket);
  socket.close = () => {};
  socket.addEventListener("open", close);
}
