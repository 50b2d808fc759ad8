"""The load generator behind `moorage bench`, for any registry.

    command       arguments to exit code
    report        results as a table and as JSON
    processes     one measurement, by generator processes
    seeding       what a case needs is pushed before, and removed after
    cases         what is measured
    scripts       operations of clients as generators: they yield requests and are sent answers
    loop          many clients in one thread
    pace          when operations begin: closed and open loop
    connection    one HTTP/1.1 connection
    messages      requests, answers, and bytes to push
    targets       where a registry is
    statistics    latencies, schedules, medians

Each of these imports only what stands below it. The generator has to be lighter than what it measures, so there is no HTTP
library in it: requests are composed once, answers are looked at and not taken apart, bodies lie in one buffer.
"""
