// What the audit of the zoo found, with links to the instances that it is about.

import { element } from "./instance.js";

function links(zoo, ids) {
  return ids.flatMap((id, index) => {
    const between = index ? [" = "] : [];
    if (!zoo.rowOfId.has(id)) return [...between, id];
    return [...between, element("a", id, { href: `#${encodeURIComponent(id)}` })];
  });
}

export function showAudit(part, zoo) {
  const { audit } = zoo;
  if (!audit) {
    part.append(element("p", "No audit was made for this page; `prepkit zoo audit` makes one."));
    return;
  }
  const counts = Object.entries(audit.counts).map(([kind, count]) =>
    element("li", [element("b", count.toLocaleString("en")), kind], count ? { class: "found" } : {}),
  );
  part.append(element("ul", counts, { class: "counts" }));
  for (const [kind, meaning] of Object.entries(audit.kinds)) {
    const findings = audit.findings.filter((finding) => finding.kind === kind);
    if (!findings.length) continue;
    part.append(element("h2", kind), element("p", `${meaning[0].toUpperCase()}${meaning.slice(1)}.`, { class: "soft" }));
    for (const finding of findings) {
      part.append(element("p", finding.sentence));
      if (!finding.groups.length) continue;
      const groups = finding.groups.map((ids) => element("li", links(zoo, ids)));
      if (finding.more) groups.push(element("li", `and ${finding.more.toLocaleString("en")} more`));
      part.append(element("details", [element("summary", "Which"), element("ul", groups)]));
    }
  }
  for (const [title, sentences] of [["Checked", audit.checked], ["Not checked", audit.unchecked]]) {
    if (sentences.length) part.append(element("h2", title), element("ul", sentences.map((text) => element("li", text))));
  }
}
