//! Virtqueues of several guests and threads, and what the owner of an export does meanwhile.
