// The panels beside a conversation.
const panels = document.querySelectorAll(".panel");
/** On small screens, an open panel covers the messages, and only one is open at a time. */
const small = matchMedia("(max-width: 60rem)");

function arrangePanels() {
  for (const panel of panels) {
    panel.name = small.matches ? "panel" : "";
    panel.open = !small.matches;
  }
}

function uncoverMessages() {
  if (small.matches) arrangePanels();
}

small.addEventListener("change", arrangePanels);
document.querySelector(".talk").addEventListener("pointerdown", uncoverMessages);
arrangePanels();
