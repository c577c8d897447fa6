// A network line that the page can cut. The client is unmodified: it is given this line's WebSocket.

/** A socket on a line that is cut: it closes before it opens. */
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
    /** What the client uses instead of the browser's WebSocket. */
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

  /** Cut the line: what is under way is lost, and no connection opens until `restore`. */
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
  // Browsers complain in the console about a socket that is closed before it opened.
  const close = () => WebSocket.prototype.close.call(socket);
  socket.close = () => {};
  socket.addEventListener("open", close);
}
