// Sends one mail with nodemailer, as web applications do: HTML, an attachment, Japanese in the headers.
// Prints what the server answered as one JSON line.
'use strict'
const nodemailer = require('nodemailer')
const fs = require('fs')
const { parseArgs } = require('util')

const { values: options } = parseArgs({
  options: Object.fromEntries(
    ['port', 'user', 'password', 'from', 'to', 'ca', 'name'].map((name) => [name, { type: 'string' }])
      .concat([['implicit', { type: 'boolean', default: false }]]))
})
const transport = nodemailer.createTransport({
  host: '127.0.0.1',
  port: Number(options.port),
  secure: options.implicit,
  requireTLS: true,
  auth: { user: options.user, pass: options.password },
  // The name is the one in the gateway's certificate, as if DNS had led here.
  tls: { ca: fs.readFileSync(options.ca), servername: options.name }
})
transport.sendMail({
  from: { name: '注文係', address: options.from },
  to: options.to,
  subject: 'ご注文ありがとうございます',
  text: 'nodemailer says hello',
  html: '<p>nodemailer says <b>hello</b></p>',
  attachments: [{ filename: 'list.bin', content: Buffer.alloc(100000, 7) }]
}).then(
  (sent) => console.log(JSON.stringify({ accepted: sent.accepted, response: sent.response })),
  (error) => console.log(JSON.stringify({ error: String(error), code: error.responseCode || null })))
