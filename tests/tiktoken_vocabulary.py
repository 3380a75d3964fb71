"""An offline vocabulary for tiktoken, made from the npm package of the same name.

    python tests/tiktoken_vocabulary.py .cache/npm/node_modules/tiktoken .cache/tiktoken

tiktoken itself downloads its vocabularies when they are first used. The npm package carries them as
JSON; this writes one as the file that tiktoken looks for, and tiktoken checks its hash on loading.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

NAME = "o200k_base"
# tiktoken names a file of its cache by the hash of the address that it would fetch it from.
ADDRESS = f"https://openaipublic.blob.core.windows.net/encodings/{NAME}.tiktoken"


def convert(package: Path, cache: Path) -> Path:
    """Write the cache file: a line `token in base64, rank` for each token."""
    source = json.loads((package / "encoders" / f"{NAME}.json").read_text(encoding="utf-8"))
    lines = []
    for row in source["bpe_ranks"].splitlines():
        _, first, *tokens = row.split(" ")  # a mark, the rank of the first token, the tokens
        for rank, token in enumerate(tokens, int(first)):
            base64.b64decode(token, validate=True)
            lines.append((rank, f"{token} {rank}\n"))
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / hashlib.sha1(ADDRESS.encode()).hexdigest()
    target.write_text("".join(line for _, line in sorted(lines)), encoding="ascii")
    return target


if __name__ == "__main__":
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))
