/**
 * The functions behind the tools: name of the tool -> function of its checked arguments.
 * What a function returns (a value, an object, or a promise of one) goes back to the model as the tool's response.
 * Edit this file in the deployed folder to bind your own.
 */
import { calculate } from './calculator.js';

export const functions = { calculate };
