"""Complete examples from data to a proven file: data, model, recipe and a table each."""
