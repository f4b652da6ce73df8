"""Several hosts on this machine: network namespaces, and the jobs that run over them; tests use them too."""
