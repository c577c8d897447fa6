// Shows text with Markdown, which may be from a language model, and so cannot be trusted.
import { marked } from "../npm/marked.js";
import DOMPurify from "../npm/purify.js";

// There are no images, because a URL can tell another site what the answer says.
const TAGS = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul";
const POLICY = {
  ALLOWED_TAGS: ["#text", ...TAGS.split(" ")],
  ALLOWED_ATTR: ["href", "start"],
  ALLOWED_URI_REGEXP: /^(https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// HTML in the text is shown as text.
marked.use({ renderer: { html: ({ text }) => escape(text) } });

/** Replace the content of an element by a text with Markdown. */
export function showMarkdown(element, text) {
  const content = DOMPurify.sanitize(marked.parse(text), POLICY);
  for (const link of content.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  element.replaceChildren(content);
}
