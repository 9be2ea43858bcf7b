/**
 * Arithmetic without `eval`: + - * / % ^ with the usual precedence, brackets, a few constants and functions.
 * A recursive-descent parser that computes while it reads.
 */

const CONSTANTS = { pi: Math.PI, e: Math.E };
const FUNCTIONS = {
  sqrt: Math.sqrt, abs: Math.abs, round: Math.round, floor: Math.floor, ceil: Math.ceil,
  sin: Math.sin, cos: Math.cos, tan: Math.tan, ln: Math.log, log: Math.log10, exp: Math.exp, min: Math.min, max: Math.max,
};
const SIGNS = { '×': '*', '·': '*', '÷': '/', '−': '-', '–': '-', '**': '^' };
const MAX_DEPTH = 200;

/** An expression that is none; the message says where. */
export class CalculatorError extends Error {
  name = 'CalculatorError';
}

function* tokens(text) {
  const pattern = /\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(\*\*|[-+*/%^(),×·÷−–])|([a-zA-Z]+)|(\S))/gy;
  for (let match = pattern.exec(text); match; match = pattern.exec(text)) {
    const at = match.index + match[0].search(/\S/);
    if (match[1]) yield { kind: 'number', value: Number(match[1]), at };
    else if (match[2]) yield { kind: SIGNS[match[2]] ?? match[2], at };
    else if (match[3]) yield { kind: 'name', value: match[3].toLowerCase(), at };
    else throw new CalculatorError(`"${match[4]}" at character ${at + 1} is not arithmetic`);
  }
  yield { kind: 'end', at: text.length };
}

/**
 * The value of an expression. Throws CalculatorError.
 * @param {string} expression such as "12 * (3 + 4)"
 * @returns {number}
 */
export function evaluate(expression) {
  if (typeof expression !== 'string' || expression.length > 2000) throw new CalculatorError('an expression of at most 2000 characters is needed');
  const list = [...tokens(expression)];
  let at = 0;
  let depth = 0;
  const next = () => list[at].kind;
  const take = (kind) => (next() === kind ? list[at++] : null);
  const fail = () => {
    const { kind, value, at: place } = list[at];
    throw new CalculatorError(kind === 'end' ? 'the expression ends too early' : `"${value ?? kind}" at character ${place + 1} does not fit there`);
  };

  function sum() {
    let value = product();
    for (;;) {
      if (take('+')) value += product();
      else if (take('-')) value -= product();
      else return value;
    }
  }

  function product() {
    let value = signed();
    for (;;) {
      if (take('*')) value *= signed();
      else if (take('/')) {
        const by = signed();
        if (by === 0) throw new CalculatorError('division by zero');
        value /= by;
      } else if (next() === '%') {
        // "20 % of" style: a percent sign with nothing to divide by means hundredths
        at += 1;
        if (['number', 'name', '('].includes(next())) {
          const by = signed();
          if (by === 0) throw new CalculatorError('division by zero');
          value %= by;
        } else value /= 100;
      } else return value;
    }
  }

  function signed() {
    depth += 1;
    if (depth > MAX_DEPTH) throw new CalculatorError('the expression is nested too deeply');
    try {
      if (take('-')) return -signed();
      if (take('+')) return signed();
      return power();
    } finally {
      depth -= 1;
    }
  }

  function power() {
    const base = atom();
    return take('^') ? base ** signed() : base; // to the right: 2^3^2 is 512
  }

  function atom() {
    const number = take('number');
    if (number) return number.value;
    if (take('(')) {
      const value = sum();
      if (!take(')')) fail();
      return value;
    }
    const name = take('name');
    if (!name) return fail();
    if (Object.hasOwn(CONSTANTS, name.value)) return CONSTANTS[name.value];
    if (!Object.hasOwn(FUNCTIONS, name.value)) throw new CalculatorError(`"${name.value}" at character ${name.at + 1} is not known`);
    if (!take('(')) fail();
    const values = [sum()];
    while (take(',')) values.push(sum());
    if (!take(')')) fail();
    return FUNCTIONS[name.value](...values);
  }

  const value = sum();
  if (next() !== 'end') fail();
  if (!Number.isFinite(value)) throw new CalculatorError('the result is not a finite number');
  return value;
}

/** The `calculate` tool: `{expression}` in, `{result}` out, rounded to 12 significant digits (0.1 + 0.2 is 0.3). */
export function calculate({ expression }) {
  return { result: Number(evaluate(expression).toPrecision(12)) };
}
