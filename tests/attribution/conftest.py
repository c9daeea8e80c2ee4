import sys
from pathlib import Path

for folder in ("sweep", "forgetting"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
