//! Cloud Foundry of 2012 on natsmux: two buses, independent brokers, components in queue
//! groups that exit at the first error; and the server and the bytes of that time.

mod before_connect;
mod books;
mod roles;
mod scenario;
mod server_of_2012;
mod stand_in;
#[path = "../support/mod.rs"]
mod support;
