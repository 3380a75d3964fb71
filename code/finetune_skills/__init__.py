"""The installed face of finetune-skills: the bundle as data, and later the `finetune` command."""
