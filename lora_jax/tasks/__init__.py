"""A task: a model, its base, its data and its loss, as one object that its caller holds."""
