"""A run in a process of its own, to be killed: python engine_parent.py JOURNAL COUNT SECONDS."""

import json
import sys
import time
from pathlib import Path

from intruscope.engine.executors import LocalExecutor
from intruscope.engine.journal import Journal
from intruscope.engine.run import run_tasks
from intruscope.engine.tasks import Task
from intruscope.errors import IntruscopeError

folder, count, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
tasks = [Task(key=f"t{i}", payload=("square", i)) for i in range(count)]
executor = LocalExecutor("engine_functions:work", num_workers=2)
try:
    with Journal(folder, {"count": count}) as journal:
        computed = []

        def note(event):
            if event.event == "done":
                computed.append(event.key)
                print(event.key, flush=True)
                time.sleep(seconds)

        outcomes = run_tasks(tasks, executor, journal=journal, on_event=note)
except IntruscopeError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
print("RESULT", json.dumps([outcome.record for outcome in outcomes]))
