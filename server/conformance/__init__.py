"""Whether an answer fits a schema that the grammar enforced in part."""
