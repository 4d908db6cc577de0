"""Starting processes, finding out which one this is, and stopping them in an orderly way; nothing of detection."""
