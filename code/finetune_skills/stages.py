"""Which gate each stage script needs. Standard library only, so that the hook can read it."""

# Script in a project's scripts/ folder -> the gate that has to be open before it runs.
REQUIRES = {
    "personas.py": "taxonomy",
    "baseline.py": "prompts",
    "generate.py": "baseline",
    "assess.py": "rubric",
    "audit.py": "scale",
    "fixup.py": "audit",
    "slice.py": "fixup",
    "export.py": "slice",
    "push_dataset.py": "slice",
    "train.py": "mask",
    "submit_training.py": "mask",
    "convert_to_gguf.py": "training",
    "run_evaluation.py": "gguf",
}
