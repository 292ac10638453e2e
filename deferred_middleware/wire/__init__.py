"""How a task looks between its two ends: headers, signature, large payloads, pickles read without loading them."""
