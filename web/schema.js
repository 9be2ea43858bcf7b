/** Calls against their tool's schema, and results made fit for the prompt. No library, no code built from text. */
import { findControlToken } from './calls.js';

/**
 * What is wrong with a call: an empty list when its tool and all arguments are as declared.
 * @param {import('./calls.js').Call} call
 * @param {object[]} tools
 * @returns {string[]}
 */
export function checkCall(call, tools) {
  const tool = tools.map((entry) => entry.function ?? entry).find(({ name }) => name === call.name);
  if (!tool) return [`there is no tool named ${call.name}`];
  return check(call.arguments, { additionalProperties: false, ...tool.parameters, type: 'object' }, '');
}

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const TYPES = {
  string: (value) => typeof value === 'string',
  number: (value) => typeof value === 'number' && Number.isFinite(value),
  integer: (value) => Number.isSafeInteger(value),
  boolean: (value) => typeof value === 'boolean',
  array: Array.isArray,
  object: isObject,
};

function check(value, schema, path) {
  const where = path || 'the arguments';
  const type = schema.type?.toLowerCase?.();
  if (type && TYPES[type] && !TYPES[type](value)) return [`${where} must be ${/^[aeiou]/.test(type) ? 'an' : 'a'} ${type}, not ${show(value)}`];
  const problems = [];
  if (schema.enum && !schema.enum.includes(value)) problems.push(`${where} must be one of ${schema.enum.join(', ')}, not ${show(value)}`);
  if (typeof value === 'number') {
    if (value < schema.minimum) problems.push(`${where} must be at least ${schema.minimum}`);
    if (value > schema.maximum) problems.push(`${where} must be at most ${schema.maximum}`);
    if (value <= schema.exclusiveMinimum) problems.push(`${where} must be more than ${schema.exclusiveMinimum}`);
    if (value >= schema.exclusiveMaximum) problems.push(`${where} must be less than ${schema.exclusiveMaximum}`);
  }
  if (typeof value === 'string') {
    if (value.length < schema.minLength) problems.push(`${where} must have at least ${schema.minLength} characters`);
    if (value.length > schema.maxLength) problems.push(`${where} must have at most ${schema.maxLength} characters`);
  }
  if (Array.isArray(value)) {
    if (value.length < schema.minItems) problems.push(`${where} must have at least ${schema.minItems} entries`);
    if (value.length > schema.maxItems) problems.push(`${where} must have at most ${schema.maxItems} entries`);
    if (schema.items) value.forEach((item, i) => problems.push(...check(item, schema.items, `${path}[${i}]`)));
  }
  if (isObject(value)) {
    const properties = schema.properties ?? {};
    const free = schema.additionalProperties ?? !Object.keys(properties).length; // what other keys hold; false: there are none
    for (const key of schema.required ?? []) if (!Object.hasOwn(value, key)) problems.push(`${join(path, key)} is missing`);
    for (const [key, item] of Object.entries(value)) {
      if (Object.hasOwn(properties, key)) problems.push(...check(item, properties[key], join(path, key)));
      else if (free === false) problems.push(`there is no argument ${join(path, key)}`);
      else problems.push(...check(item, free === true ? {} : free, join(path, key)));
    }
  }
  return problems;
}

const join = (path, key) => (path ? `${path}.${key}` : key);
const show = (value) => JSON.stringify(value)?.slice(0, 60) ?? String(value);

/**
 * A tool's result as the prompt can carry it: control tokens lose their bracket, `null` and undefined entries go,
 * numbers that are none become text. Strings and objects stay; anything else is wrapped as `{value: …}`.
 */
export function disarm(value) {
  const plain = clean(value, 0);
  if (typeof plain === 'string' || isObject(plain)) return plain;
  return plain === undefined ? { value: 'done' } : { value: plain };
}

function clean(value, depth) {
  if (depth > 16) return '…';
  if (typeof value === 'string') {
    let text = value;
    for (let token = findControlToken(text); token; token = findControlToken(text)) text = text.replaceAll(token, `‹${token.slice(1)}`);
    return text;
  }
  if (typeof value === 'boolean') return value;
  if (typeof value === 'number') return Number.isFinite(value) ? value : String(value);
  if (typeof value === 'bigint') return String(value);
  if (Array.isArray(value)) return value.map((item) => clean(item, depth + 1)).filter((item) => item !== undefined);
  if (isObject(value)) {
    const entries = Object.entries(value).map(([key, item]) => [clean(key, depth).replace(/[{}[\]:,]/g, '_') || '_', clean(item, depth + 1)]);
    return Object.fromEntries(entries.filter(([, item]) => item !== undefined));
  }
  return undefined;
}
