"""From a score to a decision: a threshold with a promise, and the file that holds it."""
