define(`QUEUE_DIR', `BASE/queue')dnl
define(`STATUS_FILE', `BASE/statistics')dnl
define(`HELP_FILE', `BASE/helpfile')dnl
define(`ALIAS_FILE', `')dnl
define(`confPID_FILE', `BASE/sendmail.pid')dnl
define(`confSERVICE_SWITCH_FILE', `BASE/switch')dnl
define(`confDONT_PROBE_INTERFACES', `true')dnl
define(`confDONT_BLAME_SENDMAIL', `GroupWritableDirPathSafe')dnl
define(`confTO_IDENT', `0')dnl
define(`confQUEUE_LA', `1000')dnl
define(`confREFUSE_LA', `1000')dnl
define(`confMIN_QUEUE_AGE', `0')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unresolvable_domains')dnl
DAEMON_OPTIONS(`Port=PORT, Addr=127.0.0.1, Name=MTA')dnl
