
// A choice of one run out of several, at the head of a section.

/** Show one of `indices` (places of runs), the first that shares kernels; offer the others in a list. */
function choose(whole, indices, show) {
  const first = indices.find((index) => runs[index].shares) ?? indices[0];
  if (indices.length > 1) {
    const dot = html("span", { class: `dot run-${runs[first].colour}` });
    const list = html("select", { "aria-label": "Run" });
    list.append(...indices.map((index) => html("option", { value: index }, runs[index].name)));
    list.value = first;
    list.addEventListener("change", () => {
      leave();
      dot.setAttribute("class", `dot run-${runs[list.value].colour}`);
      show(Number(list.value));
    });
    const head = html("div", { class: "head" });
    const title = whole.querySelector("h2");
    title.before(head);
    head.append(title, html("div", { class: "choose" }, dot, list));
  }
  show(first);
}

/** Show one of the panels of a section, which stand in the page for each run. */
function choosePanels(name) {
  const panels = [...document.querySelectorAll(`#${name} .panel`)];
  if (panels.length < 2) return;
  const indices = panels.map((panel) => Number(panel.dataset.run));
  for (const panel of panels) panel.querySelector(".of").hidden = true;
  choose(document.getElementById(name), indices, (index) => {
    panels.forEach((panel, place) => (panel.hidden = indices[place] !== index));
  });
}

/** Return a group of radio buttons, one of them chosen; pick(value) is called on another choice. */
function segments(label, options, chosen, pick) {
  const group = html("fieldset", { class: "segments", "aria-label": label });
  for (const [value, text] of options) {
    const input = html("input", { type: "radio", name: label, value });
    input.checked = value === chosen;
    input.addEventListener("change", () => pick(value));
    group.append(html("label", {}, input, html("span", {}, text)));
  }
  return group;
}
