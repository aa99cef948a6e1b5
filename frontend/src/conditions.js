// Filters of the table: a text that a value holds, or for numbers a condition.

const BOUND = /^(<=|>=|<|>|=|!=)\s*(-?[\d.]+(?:e[-+]?\d+)?)$/i;
const RANGE = /^(-?[\d.]+(?:e[-+]?\d+)?)\s*\.\.\s*(-?[\d.]+(?:e[-+]?\d+)?)$/i;

const COMPARED = {
  "<": (value, bound) => value < bound,
  "<=": (value, bound) => value <= bound,
  ">": (value, bound) => value > bound,
  ">=": (value, bound) => value >= bound,
  "=": (value, bound) => value === bound,
  "!=": (value, bound) => value !== bound,
};

// Return the test that a filter's text stands for.
export function testOf(text, kind) {
  const wanted = text.trim();
  if (kind === "number") {
    const bound = BOUND.exec(wanted);
    if (bound) return (value) => typeof value === "number" && COMPARED[bound[1]](value, Number(bound[2]));
    const range = RANGE.exec(wanted);
    if (range) return (value) => typeof value === "number" && value >= Number(range[1]) && value <= Number(range[2]);
  }
  const small = wanted.toLowerCase();
  return (value) => value !== null && value !== undefined && String(value).toLowerCase().includes(small);
}
