"""What the page does: sorts its tables, moves its sliders, copies its commands. It builds no markup out of text."""

SCRIPT = """
"use strict";

function number(cell) {
  return cell.dataset.sort === undefined || cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
}

// Scores of different protocols are never put into one order: a group stays together, and groups keep theirs.
function compare(a, b, direction) {
  const group = Number(a.dataset.group || 0) - Number(b.dataset.group || 0);
  if (group !== 0) return group;
  if (a.dataset.sort === undefined) return direction * a.textContent.localeCompare(b.textContent);
  const one = number(a), other = number(b);
  if (one === null || other === null) return (one === null) - (other === null);
  return direction * (one - other);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex;
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const body = table.tBodies[0], rows = Array.from(body.rows);
    rows.sort((a, b) => compare(a.cells[column], b.cells[column], direction));
    body.append(...rows);
    document.getElementById("said").textContent =
      "sorted by " + button.textContent + (direction === 1 ? ", ascending" : ", descending");
  });
}

for (const slider of document.querySelectorAll("input[type=range]")) {
  const pictures = document.getElementById(slider.dataset.pictures).querySelectorAll("img");
  const output = document.getElementById(slider.dataset.output);
  const show = () => {
    pictures.forEach((picture, i) => { picture.hidden = i !== slider.valueAsNumber; });
    const label = pictures[slider.valueAsNumber].dataset.label;
    output.textContent = label;
    slider.setAttribute("aria-valuetext", label);
  };
  slider.addEventListener("input", show);
  show();
}

function copied(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done ? Promise.resolve() : Promise.reject(new Error("copy"));
}

for (const button of document.querySelectorAll("button.copy")) {
  const name = button.textContent;
  button.addEventListener("click", () => {
    const command = document.getElementById(button.dataset.copies);
    copied(command.textContent).then(() => "copied", () => {
      getSelection().selectAllChildren(command);
      return "selected: press Ctrl+C";
    }).then((said) => {
      button.textContent = said;
      document.getElementById("said").textContent = said;
      setTimeout(() => { button.textContent = name; }, 2000);
    });
  });
}
"""
