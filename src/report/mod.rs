//! What a run leaves for people: tables, pictures, plots, and what the terminal shows.

pub mod table;
