"""What proves each module: exams that measure an agent, and the files and figures they leave behind."""
