"""Files: durable writes, names, the cache."""
