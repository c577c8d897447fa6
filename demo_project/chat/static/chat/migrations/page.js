// Shared by the scripts of all boxes: shows the state of a subscription and the received messages.

const WORDS = { connected: "Connected", connecting: "Connecting…", disconnected: "Disconnected", rejected: "Rejected" };

/** Show a message in a box. */
export function show(topic, { text, at }, note = "") {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.dateTime = at;
  time.textContent = new Date(at).toLocaleTimeString();
  item.append(time, " ", text, note && `, ${note}`);
  document.querySelector(`#${topic} .received`).prepend(item);
}

/** Show the state of a box's subscription. */
export function status(topic, state) {
  const box = document.querySelector(`#${topic}`);
  const badge = box.querySelector(".badge");
  box.dataset.state = badge.dataset.state = state;
  badge.textContent = WORDS[state];
}

for (const form of document.querySelectorAll("form.broadcast")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    fetch(form.action, { method: "POST", body: new FormData(form) }).catch(() => {});
  });
}
