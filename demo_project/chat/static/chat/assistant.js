// The page of a conversation with the assistant. Each answer is a run, which the page follows while it is being written.
import { cable, isLive, keepSubscribed, notify, Scroller, sendOnEnter, showConnection } from "./cable.js";
import { showMarkdown } from "./markdown.js";
import "./panels.js";

const page = document.querySelector("#assistant");
const list = document.querySelector("#answers");
const template = document.querySelector("#answer-template");
const scroller = new Scroller(list);
const form = document.querySelector("#ask");
const prompt = document.querySelector("#prompt");
const askButton = document.querySelector("#ask-button");
const stopButton = document.querySelector("#stop");

const ENDED = ["completed", "stopped", "failed", "rejected"];
const WORDS = {
  queued: "Waiting for a worker…",
  disconnected: "The connection is lost. The answer may continue meanwhile.",
  stopped: "Stopped.",
  rejected: "This answer does not exist any more.",
};

/** One answer on the page. `item.dataset` has the id of its run and the state. */
class Answer {
  constructor(item) {
    this.item = item;
    this.text = item.querySelector(".text");
    this.retry = item.querySelector(".retry");
    this.retry.addEventListener("click", () => send("retry", { run: item.dataset.run }));
    if (this.isActive) this.follow();
    else this.showText(this.text.textContent);
  }

  get isActive() {
    return !ENDED.includes(this.item.dataset.state);
  }

  follow() {
    this.run?.close();
    this.run = AnyCable.followRun(cable, this.item.dataset.run, {
      onText: (text) => this.showText(text),
      onState: (state) => this.showState(state, WORDS[state]),
      onEnd: ({ status, error }) => {
        this.showState(status, error || WORDS[status]);
        this.run.close();
      },
    });
  }

  showText(text) {
    this.latest = text;
    // The text may grow more often than the screen is refreshed.
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      showMarkdown(this.text, this.latest);
      scroller.follow();
    });
  }

  showState(state, words = "") {
    this.item.dataset.state = state;
    this.item.querySelector(".status").textContent = words;
    this.retry.hidden = !["stopped", "failed"].includes(state);
    showButtons();
    scroller.follow();
  }
}

/** The answers on the page, by the ids of their runs. */
const answers = new Map();
const active = () => [...answers.values()].find((answer) => answer.isActive);

/** Show a new answer, or one that is written again. */
function receive({ run, prompt: question, title }) {
  if (!run) return;
  document.querySelector(".rooms [aria-current]").textContent = title;
  document.querySelector("#intro").hidden = true;
  if (answers.has(run)) return answers.get(run).follow();
  const item = template.content.firstElementChild.cloneNode(true);
  item.dataset.run = run;
  item.querySelector(".prompt").textContent = question;
  list.append(item);
  answers.set(run, new Answer(item));
  scroller.toEnd();
  showButtons();
}

function showButtons() {
  const isBusy = Boolean(active());
  stopButton.hidden = !isBusy;
  askButton.hidden = isBusy;
  askButton.disabled = stopButton.disabled = !isLive(subscription.channel);
  page.setAttribute("aria-busy", String(isBusy));
}

/** Call an action, which returns why it refuses, or "". Return whether it was done. */
async function send(action, data) {
  try {
    const refusal = await AnyCable.call(subscription.channel, action, data);
    if (refusal) notify(refusal);
    return !refusal;
  } catch {
    notify("It could not be sent: try again when you are connected.");
    return false;
  }
}

const params = { conversation: Number(page.dataset.conversation), after: page.dataset.after };
const subscription = keepSubscribed("AssistantChannel", params, (channel) => {
  channel.on("connect", showButtons);
  channel.on("message", receive);
});
for (const item of list.querySelectorAll(".answer")) answers.set(item.dataset.run, new Answer(item));
showConnection();
showButtons();
new MutationObserver(showButtons).observe(document.querySelector("#line"), { attributeFilter: ["data-state"] });

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = prompt.value.trim();
  if (question && (await send("ask", { prompt: question })) && prompt.value.trim() === question) prompt.value = "";
});
sendOnEnter(prompt);

for (const chip of document.querySelectorAll("[data-prompt]")) {
  chip.addEventListener("click", () => {
    prompt.value = chip.dataset.prompt;
    form.requestSubmit();
  });
}

stopButton.addEventListener("click", () => {
  active()?.run.stop().catch(() => notify("It could not be stopped: try again when you are connected."));
});
