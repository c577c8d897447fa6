// The assistant's page: shows answers piece by piece, as they are written.
import { isLive, keepSubscribed, notify, Scroller, sendOnEnter, showConnection } from "./cable.js";

const page = document.querySelector("#assistant");
const list = document.querySelector("#answers");
const template = document.querySelector("#answer-template");
const scroller = new Scroller(list);
const form = document.querySelector("#ask");
const prompt = document.querySelector("#prompt");
const askButton = document.querySelector("#ask-button");
const stopButton = document.querySelector("#stop");
/** After how many milliseconds of silence to ask the server whether the answer is still being written. */
const SILENCE = 12000;

/** One answer on the page. `item.dataset` has its status and the number of its chunks. */
class Answer {
  constructor(item) {
    this.item = item;
    this.id = Number(item.dataset.answerId);
    this.text = item.querySelector(".text");
    this.status = item.querySelector(".status");
    this.chunks = 0;
    if (this.isRunning) this.listenForSilence();
  }

  get isRunning() {
    return this.item.dataset.status === "running";
  }

  chunk({ index, text }) {
    if (!this.isRunning) return; // the server rendered the complete answer
    this.listenForSilence();
    if (index < this.chunks) {
      this.item.dataset.repeats = Number(this.item.dataset.repeats) + 1;
    } else if (index === this.chunks) {
      this.text.append(text);
      this.item.dataset.chunks = ++this.chunks;
    } // else the beginning is no longer in the history: `complete` loads the saved text
  }

  complete({ chunks, status }) {
    this.end(status, status === "stopped" ? "Stopped." : "");
    if (chunks !== this.chunks) this.reload();
  }

  fail({ message }) {
    this.end("error", message);
  }

  end(status, words) {
    if (!this.isRunning) return;
    clearTimeout(this.timer);
    this.item.dataset.status = status;
    this.status.textContent = words;
  }

  /** Replace the streamed text by the saved one. */
  async reload() {
    const response = await fetch(page.dataset.answerUrl.replace("/0/", `/${this.id}/`));
    if (!response.ok) return notify("An answer could not be loaded. Reload the page to see it.", { stays: true });
    const saved = await response.json();
    this.item.dataset.reloaded = "true";
    this.text.textContent = saved.text;
    if (saved.status !== "running") this.end(saved.status, saved.error);
    showButtons();
  }

  listenForSilence() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (isLive(subscription.channel)) subscription.channel.perform("check", { answer_id: this.id }).catch(() => {});
      this.listenForSilence();
    }, SILENCE);
  }
}

const answers = new Map();
for (const item of list.querySelectorAll(".answer")) {
  const answer = new Answer(item);
  answers.set(answer.id, answer);
}

const running = () => [...answers.values()].find((answer) => answer.isRunning);

function started({ answer_id: id, prompt: question }) {
  if (answers.has(id)) return;
  const item = template.content.firstElementChild.cloneNode(true);
  item.dataset.answerId = id;
  item.querySelector(".prompt").textContent = question;
  document.querySelector("#intro").hidden = true;
  list.append(item);
  answers.set(id, new Answer(item));
  scroller.toEnd();
}

function receive(event) {
  const answer = answers.get(event.answer_id);
  if (event.type === "refused") notify(event.reason);
  else if (event.type === "started") started(event);
  else if (event.type === "chunk") answer?.chunk(event);
  else if (event.type === "complete") answer?.complete(event);
  else if (event.type === "error") answer?.fail(event);
  if (event.type !== "chunk") showButtons();
  scroller.follow();
}

function showButtons() {
  const busy = Boolean(running());
  const live = isLive(subscription.channel);
  stopButton.hidden = !busy;
  askButton.hidden = busy;
  askButton.disabled = stopButton.disabled = !live;
  page.setAttribute("aria-busy", String(busy));
}

function listen(channel) {
  channel.on("connect", showButtons);
  channel.on("message", receive);
  channel.on("info", ({ type }) => {
    if (type === "history_not_found") running()?.reload();
  });
}

const subscription = keepSubscribed("AssistantChannel", {}, listen);
showConnection();
new MutationObserver(showButtons).observe(document.querySelector("#line"), { attributeFilter: ["data-state"] });

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = prompt.value.trim();
  if (!question) return;
  if (running()) return notify("One answer at a time: stop the other one first.");
  if (!isLive(subscription.channel)) return notify("You are not connected: ask again when you are.");
  subscription.channel.perform("ask", { prompt: question }).catch(() => notify("It could not be sent."));
  prompt.value = "";
});
sendOnEnter(prompt);

for (const chip of document.querySelectorAll("[data-prompt]")) {
  chip.addEventListener("click", () => {
    prompt.value = chip.dataset.prompt;
    form.requestSubmit();
  });
}

stopButton.addEventListener("click", () => {
  const answer = running();
  if (answer && isLive(subscription.channel)) {
    subscription.channel.perform("stop", { answer_id: answer.id }).catch(() => notify("It could not be stopped."));
  }
});
