//! The bus on a real RabbitMQ: the conformance suite, and what only a broker can do to one.

mod rabbit {
    mod conformance;
    mod fixtures;
    mod outages;
    mod queues;
    mod sharing;
}
