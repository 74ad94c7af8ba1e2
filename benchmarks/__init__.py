"""How fast Queuetopia is on this machine, measured through real processes, with the disk's real fsync.

    python -m benchmarks                                     all workloads, on PostgreSQL and on SQLite
    python -m benchmarks --quick drain latency               one short run of these two
    python -m benchmarks --database postgres://postgres@127.0.0.1/postgres

``--database`` is ``postgres``, ``sqlite`` or ``mariadb`` (a private server with default durability), or the URL of a
server on which databases may be created; it can be given several times. Needs the ``test`` extra.

Workloads, each in a new database of its own, run three times (once with ``--quick``), in turns:

- ``create``: one ``create_job`` with its own commit, the INSERT alone and with the wake-up that follows it, for a queue
  that has work already, for one that has none left, and for a new one;
- ``bulk``: 20,000 jobs in 1,000 queues by ``create_jobs``;
- ``drain``: 20,000 jobs that do nothing, over 1,000 queues, through as many worker processes as there are cores (a
  tenth of that on SQLite and MariaDB);
- ``rounds``: the same with ``--slice 1``: each job is a claim of its own;
- ``line``: 2,000 jobs of one queue, each of which starts after the commit of the one before it;
- ``chunks``: ten times as many of one queue, whose action has a chunk of 500;
- ``cluster``: ``drain`` by two and by four nodes on this one machine;
- ``waits``: 2,000 jobs that wait for 0.1 s, ``async def``, 200 at once in one process, over 500 queues;
- ``latency``: from the commit of ``create_job`` to the start of ``perform``, one job at a time on an idle node;
- ``crowded``: the same in 500 queues, while 1,000 others are drained;
- ``drain-blocked``, ``latency-blocked``: beside 100,000 queues whose head failed and backs off, nine jobs waiting
  behind each (one with ``--quick``); ``drain-done``: beside 1,000,000 done jobs (100,000);
- ``memory``: what the scheduler occupies while 100,000 jobs pass through it;
- ``idle``: what a node costs that has nothing to do;
- ``limits``: how much of ``max_running`` and of ``rate`` three nodes use, and what they cost while no place is free;
- ``independent``: the jobs of ``drain`` with ``ordered = False``, each with a queue of its own, and how fast they are
  pruned, their queues' rows included;
- ``admin``: server time and queries of the admin's pages beside 1,000,000 jobs in 100,000 blocked queues (a tenth with
  ``--quick``);
- ``curves``, on PostgreSQL: throughput over the number of blocked queues, of waiting jobs and of nodes, and latency
  over load, each point once; ``--picture FILE`` draws them (dependency group ``benchmarks``).

How to read the table. A figure is the median of the runs, its range follows. Figures of two machines cannot be
compared, ratios can: ``ratio`` is the figure over its ``reference``, measured in the same run on the same server:

- for ``create`` an INSERT of the same row with its own commit;
- for ``drain`` and ``rounds`` the backend's own claims and records in one process on one connection, 200 queues at a
  time: no processes, no performers. 1.00 is what the database could do if the rest cost nothing;
- for ``line`` one UPDATE with its own commit for each job, for ``waits`` the jobs' own time;
- for ``chunks`` the same line, one job at a time (``line``'s figure, measured anew);
- for ``cluster`` ``drain`` by one node; for ``independent`` ``drain``, and pruning its jobs;
- for ``latency`` one INSERT into the same table, and a process that does nothing but wait for NOTIFY (where there is
  none, it polls every millisecond);
- for ``memory`` what the scheduler occupied after the first tenth of the jobs. 1.00 is flat.

The second table sets what runs beside blocked queues or done jobs against what runs alone. Jobs are checked: a run in
which one of them was not done by exactly one attempt stops with an error.

No test: what else runs on the machine changes every figure.
"""
