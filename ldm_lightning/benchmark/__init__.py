"""What parts of the library cost on this machine: a file a subject, from objects to rows and their protocol."""
