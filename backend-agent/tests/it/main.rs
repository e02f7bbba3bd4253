//! The backend from outside its modules.

mod api;
