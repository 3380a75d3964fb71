"""`finetune review`: transcripts and verdicts on a local page, read and labelled by a person."""
