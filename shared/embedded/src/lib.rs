//! Naru's engines in one process: SQLite for what must last, memory for what need not.
