// Takes everything and hands it to one next hop through the outbound queue.
exports.hook_connect = function (next, connection) {
    connection.relaying = true;
    next();
};
exports.hook_mail = (next) => next(OK);
exports.hook_rcpt = (next) => next(OK);
exports.hook_get_mx = (next) => next(OK, { priority: 0, exchange: '127.0.0.1', port: PORT_NEXT_HOP });
